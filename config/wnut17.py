# WNUT-17: rare entities in short messages, from an encoder pretrained on WikiText-2 (config/wikitext_bert.py).
# Seen: an entity F1 of 0.154 on the test set, deviation 0.006 over 3 seeds; the longest match with a training entity
# has 0.030. The encoder has read two million words and not one message.
data = "wnut17"
init_from = "out/wikitext_bert_ngram"
out_dir = "out/wnut17"

max_length = 128
batch_size = 32
epochs = 2
eval_interval = 54
optimizer = "muon"
muon_lr = 0.01
lr = 1e-3
embed_lr = 0.01
head_lr = 0.01
token_mask = 0.15
