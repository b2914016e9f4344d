# The same encoder on masked words and next-sentence prediction, as BERT was pretrained.
data = "wikitext"
out_dir = "out/wikitext_bert_nsp"
objective = "mlm_nsp"
max_minutes = 15

block_size = 128
batch_size = 32
eval_interval = 200
