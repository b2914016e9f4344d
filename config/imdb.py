# Film reviews, positive or negative, from the encoder that config/imdb_mlm.py trains on the same reviews.
# Not yet measured.
data = "imdb"
init_from = "out/imdb_mlm"
out_dir = "out/imdb"

max_length = 512
long_text = "head_tail"
batch_size = 32
epochs = 4
lr = 3e-4
layer_decay = 0.8
weight_decay = 0.05
dropout = 0.1
head_dropout = 0.2
token_mask = 0.1
average = 0.995
