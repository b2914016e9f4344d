# An encoder for film reviews: masked words on the 25,000 IMDb training reviews, where config/imdb.py begins.
# Seen: 36 % of the masked words (loss 3.72) after 73 minutes on one core; with a shared head (--tie_head=true
# --max_steps=1600) 36.4 % (3.68) after 27, but the classifier that begins there is no better (LOG.md). Pairs of tokens
# have hashed embeddings, in a table large enough that few of them share a row.
data = "imdb"
out_dir = "out/imdb_mlm"
objective = "mlm"
mask_prob = 0.2
max_steps = 2600
max_minutes = 0

n_layer = 4
n_head = 4
n_embd = 256
tie_head = False
n_gram = 2
n_buckets = 262144
block_size = 256
batch_size = 32
lr = 0.003
embed_lr = 0.03
eval_interval = 200
