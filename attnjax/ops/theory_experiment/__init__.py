"""What theories of attention need as functions: marginals over edges, steps of a flow."""

from attnjax.op import gather
from attnjax.ops.theory_experiment.marginal import marginal_attention, sampled_attention
from attnjax.ops.theory_experiment.step_gate import step_gate, stiffness

OPS = gather(globals())
