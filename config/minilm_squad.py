# SQuAD v1.1 from all-MiniLM-L6-v2; config/minilm_sst2.py tells how to get out/minilm.
data = "squad"
init_from = "out/minilm"
out_dir = "out/minilm_squad"

max_length = 256
doc_stride = 128
batch_size = 16
epochs = 2
eval_interval = 250
optimizer = "adamw"
lr = 2e-4
layer_decay = 0.9
average = 0.99
