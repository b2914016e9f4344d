# A BERT-style encoder on WikiText-2: masked words, 15 minutes on 2 cores.
data = "wikitext"
out_dir = "out/wikitext_bert"
objective = "mlm"
max_minutes = 15

block_size = 128
batch_size = 32
eval_interval = 200
