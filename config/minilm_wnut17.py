# WNUT-17 from all-MiniLM-L6-v2; config/minilm_sst2.py tells how to get out/minilm.
data = "wnut17"
init_from = "out/minilm"
out_dir = "out/minilm_wnut17"

max_length = 128
batch_size = 32
epochs = 4
eval_interval = 54
optimizer = "adamw"
lr = 2e-4
layer_decay = 0.9
average = 0.99
