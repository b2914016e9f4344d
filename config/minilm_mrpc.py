# MRPC from all-MiniLM-L6-v2, trained on noise that misleads as well; config/minilm_sst2.py tells how to get out/minilm.
#     python finetune.py config/minilm_mrpc.py --seeds=1,2,3
# Seen on the test pairs: F1 0.860 (deviation 0.013 over the three seeds), together 0.868; 8 minutes of a core each.
# Without the noise, at half the rate and in 3 epochs: 0.840 (seed 1).
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
