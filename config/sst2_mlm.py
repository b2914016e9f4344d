# An encoder for SST-2: masked words on its 62,662 training phrases alone.
# Not yet measured.
data = "sst2"
out_dir = "out/sst2_mlm"
objective = "mlm"
max_minutes = 10

n_layer = 4
n_head = 4
n_embd = 256
block_size = 64
batch_size = 64
lr = 0.003
embed_lr = 0.03
eval_interval = 200
