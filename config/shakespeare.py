# Shakespeare by characters in half a minute on 2 cores, with the model of nanoGPT's CPU recipe.
# Expect a loss of 1.80 per character on the validation set.
data = "shakespeare"
out_dir = "out/shakespeare"
max_steps = 400
max_minutes = 0

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64
batch_size = 12
lr = 0.01
embed_lr = 0.1
eval_interval = 200
log_interval = 20
