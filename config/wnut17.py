# WNUT-17, rare entities in short messages, from an encoder pretrained on WikiText-2 (config/wikitext_bert.py).
# Not yet measured.
data = "wnut17"
init_from = "out/wikitext_bert"
out_dir = "out/wnut17"

max_length = 128
batch_size = 32
epochs = 10
lr = 5e-4
token_mask = 0.15
