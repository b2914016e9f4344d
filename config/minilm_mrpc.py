# MRPC from all-MiniLM-L6-v2, trained on noise that misleads as well; config/minilm_sst2.py tells how to get out/minilm.
#     python finetune.py config/minilm_mrpc.py --seeds=1,2,3
# Seen on the test pairs: F1 0.860 (deviation 0.013 over the three seeds), together 0.868; 9 to 11 minutes
# of a busy core each. Seed 1 has 0.871, and 0.853 without the noise (--adversarial=0), in half the time.
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
