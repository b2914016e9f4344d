# WikiText-2, word level: 4 layers x 256 on 8,192 tokens of BPE, 20 minutes on 2 cores.
data = "wikitext"
out_dir = "out/wikitext"
max_minutes = 20

batch_size = 16
eval_interval = 200
