# An encoder for movie reviews: masked words on the 25,000 IMDb training reviews, the start for fine-tuning.
# Not yet run for its whole budget.
data = "imdb"
out_dir = "out/imdb_mlm"
objective = "mlm"
max_minutes = 40

n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
batch_size = 16
lr = 0.003
embed_lr = 0.03
eval_interval = 250
