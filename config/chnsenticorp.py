# ChnSentiCorp, Chinese reviews of hotels, books and laptops, from the encoder of config/chnsenticorp_mlm.py.
# Not yet measured.
data = "chnsenticorp"
init_from = "out/chnsenticorp_mlm"
out_dir = "out/chnsenticorp"

max_length = 256
long_text = "head_tail"
batch_size = 32
epochs = 6
lr = 3e-4
layer_decay = 0.9
token_mask = 0.1
