# An encoder for film reviews: masked words on the 25,000 IMDb training reviews, where config/imdb.py begins.
# Seen: 37.8 % of the masked words (loss 3.53) after 28 minutes on one core. With an output head of its own, and AdamW
# for the table, 36.0 % (3.72) after 73, and a classifier as good (LOG.md). Pairs of tokens have hashed embeddings, in a
# table large enough that few of them share a row.
data = "imdb"
out_dir = "out/imdb_mlm"
objective = "mlm"
mask_prob = 0.2
max_steps = 2000
max_minutes = 0

n_layer = 4
n_head = 4
n_embd = 256
n_gram = 2
n_buckets = 262144
block_size = 256
batch_size = 32
lr = 0.003
embed_lr = 0.003
eval_interval = 200
