// The module pxfast._C. Python checks, lays out and allocates; this file converts and calls.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/engine.h"

namespace py = pybind11;
using pxfast::Engine;
using pxfast::ProgramSpec;
using pxfast::StepSpec;
using pxfast::TapSpec;

namespace {

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;

std::vector<float> to_vector(const FloatArray& array) { return {array.data(), array.data() + array.size()}; }

StepSpec to_step(const py::dict& from) {
  StepSpec step;
  step.level = from["level"].cast<int>();
  step.per_row = from["per_row"].cast<bool>();
  step.scale = static_cast<pxfast::Scale>(from["scale"].cast<int>());
  step.epilogue = static_cast<pxfast::Epilogue>(from["epilogue"].cast<int>());
  step.outputs = from["outputs"].cast<int>();
  step.multiplier = from["multiplier"].cast<float>();
  step.concat_elu = from["concat_elu"].cast<int>();
  step.raw = from["raw"].cast<int>();
  step.elu = from["elu"].cast<int>();
  for (const py::handle& item : from["taps"].cast<py::list>()) {
    const auto tap = item.cast<py::tuple>();
    step.taps.push_back({tap[0].cast<int>(), tap[1].cast<int>(), tap[2].cast<int>(), tap[3].cast<int>(),
                         tap[4].cast<int>(), to_vector(tap[5].cast<FloatArray>())});
  }
  for (const py::handle& item : from["biases"].cast<py::list>()) {
    const auto bias = item.cast<py::tuple>();
    step.biases.push_back({to_vector(bias[0].cast<FloatArray>()), bias[1].cast<int>(), bias[2].cast<int>()});
  }
  return step;
}

ProgramSpec to_program(const py::dict& from) {
  ProgramSpec program;
  program.channels = from["channels"].cast<int>();
  program.height = from["height"].cast<int>();
  program.width = from["width"].cast<int>();
  program.filters = from["filters"].cast<int>();
  program.head = static_cast<pxfast::HeadKind>(from["head"].cast<int>());
  program.mixtures = from["mixtures"].cast<int>();
  program.tables = to_vector(from["tables"].cast<FloatArray>());
  program.input_cache = from["input_cache"].cast<int>();
  for (const py::handle& item : from["caches"].cast<py::list>()) {
    const auto cache = item.cast<py::tuple>();
    program.caches.push_back({cache[0].cast<int>(), cache[1].cast<int>(), cache[2].cast<int>()});
  }
  for (const py::handle& item : from["steps"].cast<py::list>()) program.steps.push_back(to_step(item.cast<py::dict>()));
  return program;
}

// pxfast.engines.cpu's view of a chooser: a dictionary of plain values; 'eps' is missing when it samples.
ByteArray eps_of(const py::dict& chooser, py::ssize_t images) {
  if (!chooser.contains("eps")) return {};
  const auto eps = chooser["eps"].cast<ByteArray>();
  if (eps.ndim() != 1 || eps.shape(0) != images) throw std::invalid_argument("eps must have one value per image");
  return eps;
}

pxfast::Chooser to_chooser(const py::dict& from, const ByteArray& eps) {
  if (from.contains("eps")) return {eps.data(), from["keep_probability"].cast<float>(), 0, 0, 1.0f};
  return {nullptr, 2.0f, from["seed"].cast<uint64_t>(), from["first"].cast<uint64_t>(),
          from["inverse_temperature"].cast<float>()};
}

class CpuEngine {
 public:
  CpuEngine(const py::dict& program, const std::string& isa, bool bf16)
      : spec_(to_program(program)), engine_(spec_, isa, bf16) {
    spec_.steps.clear();  // the weights are packed now
  }

  ByteArray decode(const ByteArray& images, const py::dict& chooser, int threads, int order,
                   const py::object& report) const {
    check(images);
    const ByteArray eps = eps_of(chooser, images.shape(0));
    const pxfast::Chooser native = to_chooser(chooser, eps);
    if (threads < 1) throw std::invalid_argument("threads must be positive");
    ByteArray result({images.shape(0), images.shape(1), images.shape(2), images.shape(3)});
    const uint8_t* input = images.data();
    uint8_t* output = result.mutable_data();
    py::gil_scoped_release unlocked;
    engine_.decode(input, output, images.shape(0), native, threads, static_cast<pxfast::Order>(order),
                   [&](int64_t done) {
                     py::gil_scoped_acquire locked;
                     if (PyErr_CheckSignals() != 0) throw py::error_already_set();  // Ctrl-C
                     if (!report.is_none()) report(done);
                   });
    return result;
  }

  py::dict profile(const ByteArray& images, const py::dict& chooser, int order, bool keep_guess) const {
    check(images);
    const ByteArray eps = eps_of(chooser, images.shape(0));
    const pxfast::Chooser native = to_chooser(chooser, eps);
    std::vector<uint8_t> output(images.size());
    const uint8_t* input = images.data();
    pxfast::Profile profile;
    {
      py::gil_scoped_release unlocked;
      profile = engine_.profile(input, output.data(), images.shape(0), native, static_cast<pxfast::Order>(order),
                                keep_guess);
    }
    py::dict result;
    result["row_products"] = profile.row_products;
    result["pixel_products"] = profile.pixel_products;
    result["gather"] = profile.gather;
    result["elementwise"] = profile.elementwise;
    result["head"] = profile.head;
    result["sweeps"] = profile.sweeps;
    return result;
  }

  std::string isa() const { return engine_.isa(); }
  size_t bytes_per_image() const { return engine_.bytes_per_image(); }
  size_t weight_bytes() const { return engine_.weight_bytes(); }

 private:
  ProgramSpec spec_;
  Engine engine_;

  void check(const ByteArray& images) const {
    if (images.ndim() != 4 || images.shape(1) != spec_.channels || images.shape(2) != spec_.height ||
        images.shape(3) != spec_.width)
      throw std::invalid_argument("images do not have the program's shape");
  }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled decode engines of pxfast.";
  m.def("cpu_isas", &pxfast::usable_isas, "Instruction sets usable by the CPU engine here, best first.");
#if defined(PXFAST_WITH_CUDA)
  m.attr("cuda") = true;
#else
  m.attr("cuda") = false;
#endif
  py::class_<CpuEngine>(m, "CpuEngine")
      .def(py::init<const py::dict&, const std::string&, bool>(), py::arg("program"), py::arg("isa"), py::arg("bf16"))
      .def("decode", &CpuEngine::decode, py::arg("images"), py::arg("chooser"), py::arg("threads"),
           py::arg("order"), py::arg("report"))
      .def("profile", &CpuEngine::profile, py::arg("images"), py::arg("chooser"), py::arg("order"),
           py::arg("keep_guess") = false)
      .def_property_readonly("isa", &CpuEngine::isa)
      .def_property_readonly("bytes_per_image", &CpuEngine::bytes_per_image)
      .def_property_readonly("weight_bytes", &CpuEngine::weight_bytes);
}
