# A Chinese encoder: masked words on the training reviews of ChnSentiCorp alone.
# Not yet measured.
data = "chnsenticorp"
out_dir = "out/chnsenticorp_mlm"
objective = "mlm"
max_minutes = 10

n_layer = 4
n_head = 4
n_embd = 256
block_size = 128
batch_size = 32
lr = 0.003
embed_lr = 0.03
eval_interval = 200
