# Film reviews by their mean embedding, without a transformer: tokens and hashed pairs of tokens, as in fastText
# (arXiv:1607.01759). Seen: 89.4 % of the test reviews in 4 minutes of a core. A baseline, and one more model for
# python -m nanoft ensemble.
data = "imdb"
out_dir = "out/imdb_bag"

n_layer = 0
n_head = 1
n_embd = 32
n_gram = 2
n_buckets = 524288
max_length = 1024
long_text = "head_tail"
batch_size = 32
epochs = 5
optimizer = "adamw"
lr = 0.003
weight_decay = 0.0
dropout = 0.0
