# Film reviews, positive or negative, from the encoder that config/imdb_mlm.py trains on the same reviews.
# Seen on the 25,000 test reviews, without the linear model (--linear=false): 90.2 % with seeds 1 and 3 each, together
# (python -m nanoft ensemble) 90.9 %; 89.6 % without pretraining; 30 minutes of a core, and 10 for the final metrics.
# The linear model alone (python finetune.py --data=imdb) has 91.5 % in half a minute, and beside it this encoder adds
# a tenth of a point at most.
data = "imdb"
init_from = "out/imdb_mlm"
out_dir = "out/imdb"

max_length = 512
long_text = "head_tail"
batch_size = 32
epochs = 1
eval_interval = 371
optimizer = "muon"
muon_lr = 0.01
lr = 1e-3
embed_lr = 0.08
head_lr = 0.01
weight_decay = 0.05
dropout = 0.0
head_dropout = 0.2
token_mask = 0.15
token_drop = 0.1
average = 0.995
