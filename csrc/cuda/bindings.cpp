// The CUDA part of the module pxfast._C: device pointers and the stream come from Python as integers.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "common/from_python.h"
#include "common/gil.h"
#include "cuda/engine.h"

namespace pxfast {
namespace cuda {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

class CudaEngine {
 public:
  CudaEngine(const py::dict& program, bool bf16, bool groups)
      : engine_(to_program(program), !bf16 ? Kernel::kFp32 : groups ? Kernel::kBf16Groups : Kernel::kBf16) {}

  ByteArray block() const { return ByteArray((py::ssize_t)engine_.block().size(), engine_.block().data()); }
  size_t weight_bytes() const { return engine_.block().size(); }

  Plan plan(int64_t images, const Device& device, int order, int members, bool clusters) const {
    return engine_.plan(images, device, static_cast<Order>(order), members, clusters);
  }
  int64_t most_images(const Device& device, int members, bool clusters) const {
    return engine_.most_images(device, members, clusters);
  }
  size_t workspace_bytes(const Plan& plan) const { return engine_.workspace_bytes(plan); }

  // lower, upper: the addresses of the chooser's ranges on the device, a byte for each of the images
  void decode(const Plan& plan, int device, uintptr_t stream, uintptr_t block, uintptr_t workspace, uintptr_t input,
              uintptr_t output, int64_t images, uintptr_t lower, uintptr_t upper, const py::dict& chooser,
              const py::object& report) const {
    const Chooser native = to_chooser(chooser, pointer<const uint8_t>(lower), pointer<const uint8_t>(upper));
    Unlocked unlocked;
    select_device(device);
    engine_.decode(plan, pointer<const void>(block), pointer<void>(workspace), pointer<const uint8_t>(input),
                   pointer<uint8_t>(output), images, native, pointer<void>(stream),
                   [&](int64_t done) { look_up(report, done); });
  }

  size_t bytes_per_image(bool speculative) const { return engine_.bytes_per_image(speculative); }

 private:
  Engine engine_;
};

}  // namespace

void add_to(py::module_& m) {
  m.def("cuda_problem", &device_problem, py::arg("device"),
        "Why the CUDA engine can't run on a device, as a sentence, or None when it can.");
  m.def("cuda_device", &describe_device, py::arg("device"), "What the planning must know of a device.");
  py::class_<Device>(m, "CudaDevice")
      .def(py::init([](const std::string& name, int major, int minor, int multiprocessors, size_t shared_bytes,
                       int clusters, bool groups) {
             return Device{name, major, minor, multiprocessors, shared_bytes, clusters, groups};
           }),
           py::arg("name"), py::arg("major"), py::arg("minor"), py::arg("multiprocessors"), py::arg("shared_bytes"),
           py::arg("clusters"), py::arg("groups") = false)
      .def_readonly("name", &Device::name)
      .def_readonly("multiprocessors", &Device::multiprocessors)
      .def_readonly("clusters", &Device::clusters)
      .def_readonly("groups", &Device::groups);
  py::class_<Plan>(m, "CudaPlan")
      .def_readonly("teams", &Plan::teams)
      .def_readonly("members", &Plan::members)
      .def_readonly("cluster", &Plan::cluster)
      .def_readonly("capacity", &Plan::capacity)
      .def_readonly("speculative", &Plan::speculative)
      .def_readonly("stages", &Plan::stages)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_readonly("predicted_seconds", &Plan::predicted_seconds);
  py::class_<CudaEngine>(m, "CudaEngine")
      .def(py::init<const py::dict&, bool, bool>(), py::arg("program"), py::arg("bf16"), py::arg("groups") = false)
      .def("block", &CudaEngine::block)
      .def("plan", &CudaEngine::plan, py::arg("images"), py::arg("device"), py::arg("order"), py::arg("members") = 0,
           py::arg("clusters") = false)
      .def("most_images", &CudaEngine::most_images, py::arg("device"), py::arg("members") = 0,
           py::arg("clusters") = false)
      .def("workspace_bytes", &CudaEngine::workspace_bytes, py::arg("plan"))
      .def("decode", &CudaEngine::decode, py::arg("plan"), py::arg("device"), py::arg("stream"), py::arg("block"),
           py::arg("workspace"), py::arg("input"), py::arg("output"), py::arg("images"), py::arg("lower"),
           py::arg("upper"), py::arg("chooser"), py::arg("report"))
      .def("bytes_per_image", &CudaEngine::bytes_per_image, py::arg("speculative") = false)
      .def_property_readonly("weight_bytes", &CudaEngine::weight_bytes);
}

}  // namespace cuda
}  // namespace pxfast
