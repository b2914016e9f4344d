# MRPC, do two sentences say the same, from an encoder pretrained on pairs (config/wikitext_bert_nsp.py).
# Not yet measured; LOG.md has what was tried, none of it above naive Bayes.
data = "mrpc"
init_from = "out/wikitext_bert_nsp"
out_dir = "out/mrpc"

max_length = 128
batch_size = 32
epochs = 10
lr = 2e-4
layer_decay = 0.9
token_mask = 0.1
