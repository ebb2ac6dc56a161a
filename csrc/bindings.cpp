// The module pxfast._C. Python checks, lays out and allocates; this file converts and calls.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/from_python.h"
#include "common/gil.h"
#include "common/sources.h"
#include "cpu/engine.h"

namespace py = pybind11;
using pxfast::ByteArray;
using pxfast::Engine;
using pxfast::ProgramSpec;

#if defined(PXFAST_WITH_CUDA)
namespace pxfast {
namespace cuda {
void add_to(py::module_& m);  // cuda/bindings.cpp
}
}  // namespace pxfast
#endif

namespace {

class CpuEngine {
 public:
  CpuEngine(const py::dict& program, const std::string& isa, bool bf16)
      : spec_(pxfast::to_program(program)), engine_(packed(spec_, isa, bf16)) {
    spec_.steps.clear();  // the weights are packed now
  }

  ByteArray decode(const ByteArray& images, const py::dict& chooser, int threads, int order,
                   const py::object& report, int64_t block) const {
    check(images);
    const ByteArray lower = bound(chooser, "lower", images), upper = bound(chooser, "upper", images);
    const pxfast::Chooser native = pxfast::to_chooser(chooser, lower.data(), upper.data());
    if (threads < 1) throw std::invalid_argument("threads must be positive");
    if (block < 0) throw std::invalid_argument("block must not be negative");
    ByteArray result({images.shape(0), images.shape(1), images.shape(2), images.shape(3)});
    const uint8_t* input = images.data();
    uint8_t* output = result.mutable_data();
    pxfast::Unlocked unlocked;
    engine_.decode(input, output, images.shape(0), native, threads, static_cast<pxfast::Order>(order),
                   [&](int64_t done) { pxfast::look_up(report, done); }, block);
    return result;
  }

  py::dict profile(const ByteArray& images, const py::dict& chooser, int order) const {
    check(images);
    const ByteArray lower = bound(chooser, "lower", images), upper = bound(chooser, "upper", images);
    const pxfast::Chooser native = pxfast::to_chooser(chooser, lower.data(), upper.data());
    std::vector<uint8_t> output(images.size());
    const uint8_t* input = images.data();
    pxfast::Profile profile;
    {
      pxfast::Unlocked unlocked;
      profile = engine_.profile(input, output.data(), images.shape(0), native, static_cast<pxfast::Order>(order));
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
  int64_t block() const { return engine_.block(); }
  size_t bytes_per_image() const { return engine_.bytes_per_image(); }
  size_t weight_bytes() const { return engine_.weight_bytes(); }

 private:
  // Packing a large network takes seconds, in which other threads may have the GIL.
  static Engine packed(const ProgramSpec& spec, const std::string& isa, bool bf16) {
    pxfast::Unlocked unlocked;
    return Engine(spec, isa, bf16);
  }

  ProgramSpec spec_;
  Engine engine_;

  void check(const ByteArray& images) const {
    if (images.ndim() != 4 || images.shape(1) != spec_.channels || images.shape(2) != spec_.height ||
        images.shape(3) != spec_.width)
      throw std::invalid_argument("images do not have the program's shape");
  }

  static ByteArray bound(const py::dict& chooser, const char* name, const ByteArray& images) {
    const auto values = chooser[name].cast<ByteArray>();
    if (values.ndim() != 4 || !std::equal(values.shape(), values.shape() + 4, images.shape()))
      throw std::invalid_argument(std::string(name) + " must have the images' shape");
    return values;
  }
};

// Whether the memory at two addresses is the same, for all of (address, address, bytes). Python holds on to its owners.
bool same_bytes(const std::vector<std::tuple<uintptr_t, uintptr_t, size_t>>& pieces) {
  pxfast::Unlocked unlocked;
  return std::all_of(pieces.begin(), pieces.end(), [](const auto& piece) {
    return std::get<2>(piece) == 0 ||  // nothing may lie nowhere
           std::memcmp(reinterpret_cast<const void*>(std::get<0>(piece)),
                       reinterpret_cast<const void*>(std::get<1>(piece)), std::get<2>(piece)) == 0;
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled decode engines of pxfast.";
  m.attr("sources") = pxfast::sources();
  m.def("cpu_isas", &pxfast::usable_isas, "Instruction sets usable by the CPU engine here, best first.");
  m.def("cpu_prefers_bf16", &pxfast::prefers_bf16, py::arg("isa"), "Whether bf16 is faster than fp32 there.");
  m.def("same_bytes", &same_bytes, py::arg("pieces"), "Whether pairs of (address, address, bytes) hold the same.");
#if defined(PXFAST_WITH_CUDA)
  m.attr("cuda") = true;
  pxfast::cuda::add_to(m);
#else
  m.attr("cuda") = false;
#endif
  py::class_<CpuEngine>(m, "CpuEngine")
      .def(py::init<const py::dict&, const std::string&, bool>(), py::arg("program"), py::arg("isa"), py::arg("bf16"))
      .def("decode", &CpuEngine::decode, py::arg("images"), py::arg("chooser"), py::arg("threads"),
           py::arg("order"), py::arg("report"), py::arg("block") = 0)
      .def("profile", &CpuEngine::profile, py::arg("images"), py::arg("chooser"), py::arg("order"))
      .def_property_readonly("isa", &CpuEngine::isa)
      .def_property_readonly("block", &CpuEngine::block)
      .def_property_readonly("bytes_per_image", &CpuEngine::bytes_per_image)
      .def_property_readonly("weight_bytes", &CpuEngine::weight_bytes);
}
