# An encoder for movie reviews: masked words on the 25,000 IMDb training reviews, the start for fine-tuning.
# Expect 30.1 % of the masked words (loss 4.30) after 68 minutes on one core.
data = "imdb"
out_dir = "out/imdb_mlm"
objective = "mlm"
mask_prob = 0.2
max_steps = 4000
max_minutes = 0

n_layer = 4
n_head = 4
n_embd = 256
n_gram = 3
n_buckets = 131072
block_size = 256
batch_size = 16
lr = 0.003
embed_lr = 0.03
eval_interval = 250
