# SQuAD v1.1, answers in a paragraph of Wikipedia; from config/wikitext_bert.py's encoder.
# Not yet measured.
data = "squad"
init_from = "out/wikitext_bert"
out_dir = "out/squad"

max_length = 256
doc_stride = 128
batch_size = 16
epochs = 4
lr = 3e-4
