"""Networks as pure functions of one vector theta_P.

convnet.py     NetConfig, and the ConvNet of the papers
zoo.py         ResNet-18 and -50, VGG-11, AlexNet, ViT
layers.py      Net, NetLayout, Scope: slots, layers and normalisation
flat.py        Flat: the layout that turns theta_P into named views and back
"""
