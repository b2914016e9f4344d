# Shakespeare by characters, to a low loss: two of these at once, one a core, then the mean of their probabilities:
#     for s in 1 2; do OMP_NUM_THREADS=1 python train.py config/shakespeare_long.py --seed=$s --out_dir=out/long_$s &
#     done
#     wait; python -m nanoft ensemble out/long_1 out/long_2
# Seen when AdamW still trained the table of n-grams: validation loss 1.488 (seed 1) and 1.502 (seed 2, beside other
# work), together 1.455; 15 minutes.
data = "shakespeare"
out_dir = "out/shakespeare_long"
max_minutes = 14

n_layer = 4
n_head = 4
n_embd = 256
n_gram = 3
block_size = 256
batch_size = 16
dropout = 0.1
weight_decay = 0.1
lr = 0.01
embed_lr = 0.05
eval_interval = 400
log_interval = 20
watch_interval = 0
