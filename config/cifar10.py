# CIFAR-10: 50,000 pictures of 32 x 32 pixels in ten classes, 5,000 of them for validation. data/cifar10/prepare.py
# fetches the archive, or takes it from --source. Seen on two cores, on JPEG copies of the pictures: 83.1 % of the test
# pictures after 6 minutes of training (seed 1; 13 minutes of the processor). With --epochs=1 67.4 % (seeds 1 to 3,
# three minutes of the processor), beside which bench/image_peer.py has 61.0 %. More epochs: not measured.
data = "cifar10"
out_dir = "out/cifar10"

n_layer = 2
n_head = 6
n_embd = 192
patch = 4
augment = "flip,crop"
batch_size = 125  # divides the 45,000: one shape to compile
epochs = 6
dropout = 0.0
head_dropout = 0.0
lr = 2e-3
muon_lr = 0.02
head_lr = 0.01
weight_decay = 0.01
average = 0.99
log_interval = 50
