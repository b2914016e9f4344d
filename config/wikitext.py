# WikiText-2, word level: a GPT of 4 layers x 256 on 8,192 BPE tokens, 20 minutes on 2 cores.
# Seen on the test set: 1.36 bits per byte and a perplexity of 123 per word; on a processor with AMX 1.33 and 112.
data = "wikitext"
out_dir = "out/wikitext"
max_minutes = 20

n_layer = 4
n_head = 4
n_embd = 256
tie_head = True
block_size = 256
batch_size = 16
lr = 0.003
embed_lr = 0.03
eval_interval = 200
