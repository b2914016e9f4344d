# Shakespeare by characters, as good as nanoGPT's 10.7M parameters get in 3 minutes of an A100 (1.4697), on 2 cores.
# A million characters are soon known by heart: hence dropout and weight decay, and a low rate for the n-grams' table.
data = "shakespeare"
out_dir = "out/shakespeare_long"
max_minutes = 18.5

n_layer = 6
n_head = 4
n_embd = 256
n_gram = 3
block_size = 256
batch_size = 16
dropout = 0.15
weight_decay = 0.1
lr = 0.01
embed_lr = 0.05
gram_lr = 0.01
eval_interval = 200
log_interval = 20
