"""Models with something strange in them, each with inputs that fit."""

from __future__ import annotations

import functools
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGE = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

STRANGE: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {}
"""What makes each model with its inputs, by what is strange in it."""


def strange(make: Callable[[], Any]) -> Callable[[], Any]:
    """Registers what makes a model, and inputs if those are not `X`."""

    def made() -> tuple[nn.Module, tuple[Any, ...]]:
        torch.manual_seed(0)
        found = make()
        model, inputs = found if isinstance(found, tuple) else (found, (X,))
        return model, inputs

    STRANGE[make.__name__] = made
    return make


class Two(nn.Module):
    """A layer, something between, and a layer that reads it."""

    def __init__(self, between: Callable[[Any, Tensor], Any] | None = None, **also: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        self.between = between or (lambda _, h: h.tanh())
        for name, value in also.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.b(self.between(self, self.a(x)))


def linear(i: int = 8, o: int = 8) -> nn.Linear:
    return nn.Linear(i, o).double()


def child(m: Any, h: Tensor) -> Tensor:
    result: Tensor = m.c(h)
    return result


# --- children of other kinds


@strange
def a_scripted_child() -> Any:
    return Two(child, c=torch.jit.script(nn.Sequential(linear(), nn.ReLU())))


@strange
def a_scripted_layer() -> Any:
    return Two(child, c=torch.jit.script(linear()))


@strange
def a_traced_child() -> Any:
    return Two(child, c=torch.jit.trace(linear(), torch.randn(5, 8).double()))


@strange
def a_scripted_function() -> Any:
    @torch.jit.script
    def twice(x: Tensor) -> Tensor:
        return x * 2

    return Two(lambda _, h: twice(h))


@strange
def a_compiled_child() -> Any:
    return Two(child, c=torch.compile(linear(), backend="eager"))


@strange
def a_child_compiled_in_place() -> Any:
    c = linear()
    c.compile(backend="eager")
    return Two(child, c=c)


@strange
def a_child_in_data_parallel() -> Any:
    return Two(child, c=nn.DataParallel(linear()))


@strange
def a_quantized_child() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})
    return Two(child, c=c).float(), (X.float(),)


@strange
def a_quantized_reader() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2)))
        net[2] = torch.ao.quantization.quantize_dynamic(net[2], {nn.Linear})
    return net, (X.float(),)


@strange
def a_quantization_aware_child() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        c = qat.Linear(8, 8, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm"))
    return Two(child, c=c).float(), (X.float(),)


@strange
def a_lazy_child_that_is_not_called() -> Any:
    return Two(unused=nn.LazyLinear(4))


@strange
def a_lazy_child() -> Any:
    return Two(child, c=nn.LazyLinear(8).double())


@strange
def a_parametrized_child() -> Any:
    return Two(child, c=nn.utils.parametrizations.spectral_norm(linear()))


# --- tensors of other kinds


@strange
def a_sparse_parameter() -> Any:
    weight = torch.eye(8, dtype=torch.float64).to_sparse()
    return Two(lambda m, h: torch.sparse.mm(m.w, h.t()).t(), w=nn.Parameter(weight))


@strange
def a_sparse_buffer() -> Any:
    model = Two(lambda m, h: torch.sparse.mm(m.w, h.t()).t())
    model.register_buffer("w", torch.eye(8, dtype=torch.float64).to_sparse_csr())
    return model


@strange
def a_sparse_input() -> Any:
    return Two(), (X.to_sparse(),)


@strange
def complex_layers() -> Any:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).to(torch.complex128)
    return net, (X.to(torch.complex128),)


@strange
def a_complex_step() -> Any:
    return Two(lambda _, h: torch.view_as_real(torch.polar(h.abs(), h))[..., 0])


@strange
def a_nested_input() -> Any:
    x = torch.nested.nested_tensor([X[:2], X], layout=torch.jagged)
    return nn.Sequential(linear(3, 8), nn.ReLU(), linear(8, 2)), (x,)


@strange
def a_quantized_input() -> Any:
    x = torch.quantize_per_tensor(X.float(), 0.1, 0, torch.quint8)

    class Dequantizing(Two):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.dequantize())

    return Dequantizing().float(), (x,)


class Own(torch.Tensor):
    """A subclass of a tensor."""


@strange
def an_input_of_a_subclass() -> Any:
    return Two(), (X.as_subclass(Own),)


@strange
def a_parameter_of_a_subclass() -> Any:
    model = Two()
    model.a.weight = nn.Parameter(model.a.weight.detach().as_subclass(Own))
    return model


def a_named_input() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Two(), (X.clone().rename("N", "C"),)


@strange
def a_bool_input() -> Any:
    class Casting(Two):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.double())

    return Casting(), (X > 0,)


@strange
def whole_numbers_for_floats() -> Any:
    return Two(), (torch.ones(5, 3, dtype=torch.int64),)


@strange
def a_batch_of_none() -> Any:
    return Two(), (X[:0],)


@strange
def a_batch_of_no_images() -> Any:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    return net, (IMAGE[:0],)


@strange
def a_width_of_none() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(linear(3, 0), nn.ReLU(), linear(0, 2))


@strange
def a_scalar_parameter() -> Any:
    return Two(lambda m, h: h * m.s, s=nn.Parameter(torch.tensor(2.0, dtype=torch.float64)))


@strange
def an_empty_parameter() -> Any:
    return Two(
        lambda m, h: torch.cat([h, m.s.expand(5, 0)], 1),
        s=nn.Parameter(torch.zeros(1, 0, dtype=torch.float64)),
    )


@strange
def one_tensor_for_all_parameters() -> Any:
    model = nn.Sequential(linear(3, 3), nn.ReLU(), linear(3, 3))
    for layer in (model[0], model[2]):
        layer.weight, layer.bias = model[0].weight, nn.Parameter(model[0].weight.detach()[0])
    model[2].bias = model[0].bias
    return model


@strange
def views_of_one_tensor_for_parameters() -> Any:
    model, flat = nn.Sequential(linear(3, 3), linear(3, 3)), torch.randn(18).double()
    model[0].weight = nn.Parameter(flat[:9].view(3, 3))
    model[1].weight = nn.Parameter(flat[9:].view(3, 3))
    return model


@strange
def everything_on_meta() -> Any:
    return Two().to("meta"), (X.to("meta"),)


# --- forwards of other kinds


class Returning(Two):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(super().forward(x))


@dataclass
class Result:
    value: Tensor
    text: str = "text"


Pair = namedtuple("Pair", "one other")


@strange
def returns_nothing() -> Any:
    return Returning(lambda y: None)


@strange
def returns_a_string() -> Any:
    return Returning(lambda y: "y")


@strange
def returns_a_number() -> Any:
    return Returning(lambda y: 3)


@strange
def returns_an_object() -> Any:
    return Returning(Result)


@strange
def returns_a_namespace() -> Any:
    return Returning(lambda y: SimpleNamespace(y=y, again={"y": [y]}))


@strange
def returns_a_named_tuple() -> Any:
    return Returning(lambda y: Pair(y, None))


@strange
def returns_a_generator() -> Any:
    return Returning(lambda y: (row for row in y))


@strange
def returns_a_function() -> Any:
    return Returning(lambda y: lambda: y)


@strange
def returns_itself() -> Any:
    class Itself(Two):
        def forward(self, x: Tensor) -> Any:
            return self, super().forward(x)

    return Itself()


@strange
def yields() -> Any:
    class Yielding(Two):
        def forward(self, x: Tensor) -> Any:
            yield self.b(self.a(x))

    return Yielding()


@strange
def is_a_coroutine() -> Any:
    class Waiting(Two):
        async def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    return Waiting()


@strange
def calls_itself() -> Any:
    class Recursive(Two):
        def forward(self, x: Tensor, depth: int = 2) -> Any:
            return self.b(self.a(x).tanh()) if not depth else self(x * 0.5, depth - 1)

    return Recursive()


@strange
def never_ends() -> Any:
    class Endless(Two):
        def forward(self, x: Tensor) -> Any:
            return self(x)

    return Endless()


@strange
def any_arguments() -> Any:
    class Open(Two):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    return Open()


@strange
def a_default_by_keyword_only() -> Any:
    class Keyword(Two):
        def forward(self, x: Tensor, *, scale: float = 2.0) -> Any:
            return super().forward(x) * scale

    return Keyword()


@strange
def an_argument_by_keyword_only() -> Any:
    class Keyword(Two):
        def forward(self, x: Tensor, *, scale: float) -> Any:
            return super().forward(x) * scale

    return Keyword()


@strange
def an_argument_by_position_only() -> Any:
    class Positional(Two):
        def forward(self, x: Tensor, /) -> Any:
            return super().forward(x)

    return Positional()


@strange
def no_arguments() -> Any:
    class Alone(Two):
        def forward(self) -> Any:  # type: ignore[override]
            return super().forward(X)

    return Alone(), ()


@strange
def a_module_as_input() -> Any:
    class Given(Two):
        def forward(self, x: Tensor, f: Any) -> Any:  # type: ignore[override]
            return self.b(f(self.a(x)))

    return Given(), (X, linear())


@strange
def its_own_layer_as_input() -> Any:
    class Given(Two):
        def forward(self, x: Tensor, f: Any) -> Any:  # type: ignore[override]
            return self.b(f(x))

    model = Given()
    return model, (X, model.a)


@strange
def a_function_as_input() -> Any:
    class Given(Two):
        def forward(self, x: Tensor, f: Any) -> Any:  # type: ignore[override]
            return self.b(f(self.a(x)))

    return Given(), (X, torch.tanh)


@strange
def an_object_as_input() -> Any:
    class Given(Two):
        def forward(self, x: Any) -> Any:
            return super().forward(x.value)

    return Given(), (Result(X),)


@strange
def a_generator_as_input() -> Any:
    class Given(Two):
        def forward(self, x: Any) -> Any:
            return super().forward(next(x))

    def endless() -> Iterator[Tensor]:
        while True:
            yield X

    return Given(), (endless(),)


@strange
def a_parameter_assigned() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        m.scale = nn.Parameter(torch.ones(8, dtype=h.dtype))
        return h * m.scale

    return Two(between)


@strange
def a_layer_assigned() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        m.eye = nn.Linear(8, 8, bias=False).to(h.dtype)
        nn.init.eye_(m.eye.weight)
        result: Tensor = m.eye(h)
        return result

    return Two(between)


@strange
def its_layer_replaced() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        m.c = nn.Identity() if type(m.c) is nn.Identity else m.c
        result: Tensor = m.c(h)
        return result

    return Two(between, c=linear())


@strange
def no_gradients_inside() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        with torch.no_grad():
            return h.tanh()

    return Two(between)


@strange
def inference_mode_inside() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        with torch.inference_mode():
            return h.tanh()

    return Two(between)


@strange
def gradients_inside() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        with torch.enable_grad():
            z = h.detach().requires_grad_()
            (grad,) = torch.autograd.grad(z.tanh().sum(), z)
        return h - 0.1 * grad

    return Two(between)


@strange
def autocast_inside() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.c(h.float()).double()

    return Two(between, c=nn.Linear(8, 8))


@strange
def a_functional_call_inside() -> Any:
    def between(m: Any, h: Tensor) -> Tensor:
        weights = {name: p * 1.0 for name, p in m.c.named_parameters()}
        result: Tensor = torch.func.functional_call(m.c, weights, (h,))
        return result

    return Two(between, c=linear())


@strange
def a_vmap_inside() -> Any:
    return Two(lambda m, h: torch.vmap(m.c)(h), c=linear())


@strange
def a_checkpoint_inside() -> Any:
    return Two(lambda m, h: checkpoint(m.c, h, use_reentrant=False), c=linear())


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


@strange
def a_custom_function() -> Any:
    return Two(lambda _, h: Doubling.apply(h))


class Reversible(torch.autograd.Function):
    """Calls layers in both of its passes, as reversible networks do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Any, g: Any) -> Tensor:
        one, other = x.chunk(2, 1)
        with torch.no_grad():
            one = one + f(other)
            other = other + g(one)
        ctx.f, ctx.g = f, g
        out = torch.cat([one, other], 1)
        ctx.save_for_backward(out.detach())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        one, other = ctx.saved_tensors[0].chunk(2, 1)
        d_one, d_other = grad.chunk(2, 1)
        with torch.enable_grad():
            one = one.detach().requires_grad_()
            made = ctx.g(one)
            made.backward(d_other)
            d_one = d_one + one.grad
        with torch.enable_grad():
            other = (other - made).detach().requires_grad_()
            ctx.f(other).backward(d_one)
            d_other = d_other + other.grad
        return torch.cat([d_one, d_other], 1), None, None


@strange
def a_reversible_step() -> Any:
    return Two(lambda m, h: Reversible.apply(h, m.f, m.g), f=linear(4, 4), g=linear(4, 4))


class Wrapping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, f: Any) -> Tensor:
        with torch.no_grad():
            made: Tensor = f(x)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


@strange
def a_layer_in_a_custom_function() -> Any:
    return Two(lambda m, h: Wrapping.apply(h, m.c), c=linear())


@strange
def a_hook_that_raises() -> Any:
    model = Two()

    def failing(*_: Any) -> None:
        raise RuntimeError("a hook of the user's")

    model.a.register_forward_hook(failing)
    return model


@strange
def numpy_inside() -> Any:
    return Two(lambda _, h: torch.from_numpy(h.detach().numpy() * 2))


@strange
def a_list_of_floats_inside() -> Any:
    return Two(lambda _, h: torch.tensor(h.tolist(), dtype=h.dtype))


@strange
def data_inside() -> Any:
    return Two(lambda _, h: h.data * 2)


@strange
def set_inside() -> Any:
    def between(_: Any, h: Tensor) -> Tensor:
        z = torch.empty(0, dtype=h.dtype)
        z.set_(h.detach())  # type: ignore[call-overload]
        return z

    return Two(between)


@strange
def an_out_argument() -> Any:
    return Two(lambda _, h: torch.tanh(h, out=torch.empty_like(h)))


@strange
def the_weight_of_another_layer() -> Any:
    return Two(lambda m, h: F.linear(F.linear(h, m.b.weight), m.b.weight.t()))


# --- modules of other kinds


@strange
def empty() -> Any:
    return nn.Sequential()


@strange
def without_parameters() -> Any:
    return nn.Sequential(nn.ReLU(), nn.Tanh())


@strange
def a_single_layer() -> Any:
    return linear(3, 4)


@strange
def without_forward() -> Any:
    model = nn.Module()
    model.a = linear(3, 4)
    return model


@strange
def forward_as_an_attribute() -> Any:
    model: Any = nn.Module()
    model.a, model.b = linear(3, 8), linear(8, 2)
    model.forward = lambda x: model.b(model.a(x).tanh())
    return model


@strange
def forward_of_another_object() -> Any:
    other = Two()
    model: Any = nn.Module()
    model.other = other
    model.forward = other.forward
    return model


@strange
def forward_as_a_partial() -> Any:
    model: Any = Two()
    model.forward = functools.partial(Two.forward, model)
    return model


@strange
def a_child_called_forward() -> Any:
    model: Any = Two()
    model._modules["forward"] = linear(3, 2)
    return model


@strange
def children_called_like_numbers() -> Any:
    class Numbered(Two):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("0", linear())

        def forward(self, x: Tensor) -> Any:
            return self.b(getattr(self, "0")(self.a(x)))

    return Numbered()


@strange
def odd_keys() -> Any:
    class Odd(Two):
        def __init__(self) -> None:
            super().__init__()
            keys = ("a b", "ü", "[1]", "`x`", "inserted1", "original", "keys_")
            self.d = nn.ModuleDict({key: linear() for key in keys})

        def forward(self, x: Tensor) -> Any:
            h = self.a(x)
            for layer in self.d.values():
                h = layer(h).tanh()
            return self.b(h)

    return Odd()


@strange
def children_called_like_methods() -> Any:
    class Named(Two):
        def __init__(self) -> None:
            super().__init__()
            self.layers = linear()

        def forward(self, x: Tensor) -> Any:
            return self.b(self.layers(self.a(x)))

    return Named()


@strange
def a_property_that_raises() -> Any:
    class Raising(Two):
        @property
        def broken(self) -> Any:
            raise RuntimeError("not now")

        @property
        def layers(self) -> Any:
            raise KeyError("not now")

    return Raising()


@strange
def attributes_without_an_end() -> Any:
    class Deep(Two):
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self, name + "_")

    return Deep()


@strange
def attributes_made_up() -> Any:
    class Making(Two):
        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                if name.startswith("_"):
                    raise
                return lambda *args, **kwargs: None

    return Making()


@strange
def set_before_init() -> Any:
    class Early(nn.Module):
        def __init__(self) -> None:
            self.__dict__["width"] = 8
            super().__init__()
            self.a, self.b = linear(3, 8), linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x).view(-1, self.width))

    return Early()


@strange
def init_twice() -> Any:
    class Again(Two):
        def __init__(self) -> None:
            super().__init__()
            nn.Module.__init__(self)
            self.a, self.b = linear(3, 8), linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            return self.b(self.a(x))

    return Again()


@strange
def a_child_without_init() -> Any:
    class Bare(nn.Module):
        def __init__(self) -> None:
            pass

        def forward(self, x: Tensor) -> Any:
            return x

    model = Two(lambda m, h: m.__dict__["bare"].forward(h))
    model.__dict__["bare"] = Bare()
    return model


@strange
def a_child_that_is_none() -> Any:
    model = Two()
    model.register_module("nothing", None)
    model.register_parameter("no", None)
    model.register_buffer("none", None)
    return model


@strange
def an_own_call() -> Any:
    class Calling(Two):
        def __call__(self, x: Tensor) -> Any:
            return super().__call__(x) * 2

    return Calling()


@strange
def an_own_deepcopy() -> Any:
    class Copying(Two):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("cannot be copied")

    return Copying()


@strange
def own_named_modules() -> Any:
    class Listing(Two):
        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            yield "", self

    return Listing()


@strange
def an_own_equality() -> Any:
    class Equal(nn.Linear):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, nn.Module)

        def __hash__(self) -> int:
            return 1

    return Two(child, c=Equal(8, 8).double())


@strange
def a_module_list_as_model() -> Any:
    return nn.ModuleList([linear(3, 3)])


@strange
def slots() -> Any:
    class Slotted(Two):
        __slots__ = ("extra",)

    return Slotted()


@strange
def a_final_class() -> Any:
    class Final(Two):
        def __init_subclass__(cls, **kwargs: Any) -> None:
            raise TypeError("no subclasses")

    return Final()


@strange
def a_class_with_arguments() -> Any:
    class Parent(Two):
        def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)

    class Needing(Parent, key="k"):
        pass

    return Needing()


@strange
def a_metaclass() -> Any:
    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    class Made(Two, metaclass=Meta):
        pass

    return Made()
