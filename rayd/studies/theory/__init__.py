"""What distilled data encode of a task: gradient matching on multi-index models, measured.

Kinoshita, Nishikawa and Toyoizumi (2025) prove that distilling the gradient-based training of a two-layer network of width
L on a function of an r-dimensional projection of d inputs encodes the projection, with memory ~ r^2 d + L. Their text
gives no experiment; this one is ours to choose:

* teacher: y = sum_k He2(b_k . x) / sqrt(2 r) + noise, x ~ N(0, I_d), the b_k orthonormal and random;
* student: f(x) = sum_j a_j s(w_j . x + c_j), a_j = +-1/L and paired so that f starts at 0; s is softplus, or relu;
* training: one large gradient step on the w_j (what they were is dropped: W_1 = -eta grad), biases drawn anew, then a ridge
  regression for the a_j;
* distilled: M pairs (x~, y~) in d + 1 numbers each, learned so that their gradient on fresh students is the gradient on the
  training set, and L labels on probe inputs that a seed makes, from which the ridge regression finds the a_j again.

The objective is the matching of gradients as in rayd.methods.dc, the loop rayd.distill.loop, the count the Ledger: the
"images" are vectors of d numbers. By construction the L numbers of the second layer are additive: the experiment can only
speak about the r^2 d.

    task     the teacher, the student, its second layer
    match    the pairs as a codec, one-step matching as an objective
    sweep    the sweeps, the measurement of a point, the stored points, the verdict
    page     the verdict as text and as a page

Shapes: N examples, M pairs, L neurons, d inputs, r directions.
"""
