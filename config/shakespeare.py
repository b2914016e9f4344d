# Shakespeare by characters, in seconds: a small GPT that gets embeddings for runs of up to four characters as well.
# Expect a loss of 1.87 per character on the validation set, which nanoGPT's CPU recipe (1.886) takes minutes for.
data = "shakespeare"
out_dir = "out/shakespeare"
max_steps = 80
max_minutes = 0

n_layer = 2
n_head = 4
n_embd = 128
n_gram = 4
block_size = 64
batch_size = 16
lr = 0.01
embed_lr = 0.1
eval_interval = 200
log_interval = 20
