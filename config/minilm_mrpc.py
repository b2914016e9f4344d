# MRPC from all-MiniLM-L6-v2, trained on noise that misleads as well; config/minilm_sst2.py tells how to get out/minilm.
data = "mrpc"
init_from = "out/minilm"
out_dir = "out/minilm_mrpc"

max_length = 128
batch_size = 32
epochs = 4
optimizer = "adamw"
lr = 2e-4
layer_decay = 0.9
adversarial = 1.0
eval_interval = 115
