# A BERT-style encoder on WikiText-2: masked words, 15 minutes on 2 cores.
# Seen on one core (OMP_NUM_THREADS=1): a masked loss of 3.11 and 47.2 % of the masked words on the validation set. With
# an output head of its own (--tie_head=false) and two cores 3.79 and 40.1 %.
data = "wikitext"
out_dir = "out/wikitext_bert"
objective = "mlm"
max_minutes = 15

n_layer = 4
n_head = 4
n_embd = 256
block_size = 128
batch_size = 32
lr = 0.003
embed_lr = 0.03
eval_interval = 200
