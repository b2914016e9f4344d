# A Chinese encoder: masked words on the training reviews of ChnSentiCorp alone, with hashed embeddings for pairs of
# tokens, as in config/imdb_mlm.py.
# Seen: 19.6 % of the masked words (loss 5.44) after 707 steps, 7 minutes of a core. With an output head of its own
# 12.2 % (6.31), little more than word frequencies.
data = "chnsenticorp"
out_dir = "out/chnsenticorp_mlm"
objective = "mlm"
max_steps = 707
max_minutes = 0

n_layer = 4
n_head = 4
n_embd = 256
n_gram = 2
n_buckets = 262144
block_size = 128
batch_size = 32
lr = 0.003
embed_lr = 0.003
eval_interval = 200
