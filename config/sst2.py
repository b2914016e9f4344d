# SST-2, phrases and sentences of film reviews, from an encoder pretrained on WikiText-2 (config/wikitext_bert.py).
# Not yet measured.
data = "sst2"
init_from = "out/wikitext_bert"
out_dir = "out/sst2"

max_length = 64
batch_size = 32
epochs = 3
lr = 3e-4
layer_decay = 0.9
token_mask = 0.05
