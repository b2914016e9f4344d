# WNUT-17 from all-MiniLM-L6-v2; config/minilm_sst2.py tells how to get out/minilm.
#     python finetune.py config/minilm_wnut17.py --seeds=1,2,3
data = "wnut17"
init_from = "out/minilm"
out_dir = "out/minilm_wnut17"

linear = "true"
max_length = 128
batch_size = 32
epochs = 4
eval_interval = 54
optimizer = "adamw"
lr = 2e-4
head_lr = 0.002
layer_decay = 0.9
