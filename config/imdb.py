# Film reviews, positive or negative, from the encoder that config/imdb_mlm.py trains on the same reviews.
# Seen: 91.1 % of the validation reviews after one epoch, 90.0 % of the 25,000 test reviews, whose films are others. The
# second epoch knows the training reviews by heart; the best weights are kept. An epoch takes 25 minutes on one core.
data = "imdb"
init_from = "out/imdb_mlm"
out_dir = "out/imdb"

max_length = 512
long_text = "head_tail"
batch_size = 32
epochs = 2
eval_interval = 371
optimizer = "muon"
muon_lr = 0.01
lr = 1e-3
embed_lr = 0.03
head_lr = 0.01
weight_decay = 0.05
dropout = 0.0
head_dropout = 0.2
token_mask = 0.15
token_drop = 0.1
average = 0.995
