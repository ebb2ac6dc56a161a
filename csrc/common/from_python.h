// From Python's descriptions of a program and a chooser to the engines' own, for every engine's bindings.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "head.h"
#include "program.h"

namespace pxfast {

namespace py = pybind11;

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;

inline std::vector<float> to_vector(const FloatArray& array) { return {array.data(), array.data() + array.size()}; }

inline StepSpec to_step(const py::dict& from) {
  StepSpec step;
  step.level = from["level"].cast<int>();
  step.per_row = from["per_row"].cast<bool>();
  step.scale = static_cast<Scale>(from["scale"].cast<int>());
  step.epilogue = static_cast<Epilogue>(from["epilogue"].cast<int>());
  step.outputs = from["outputs"].cast<int>();
  step.multiplier = from["multiplier"].cast<float>();
  step.concat_elu = from["concat_elu"].cast<int>();
  step.raw = from["raw"].cast<int>();
  step.elu = from["elu"].cast<int>();
  step.early = from["early"].cast<int>();
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

inline ProgramSpec to_program(const py::dict& from) {
  ProgramSpec program;
  program.channels = from["channels"].cast<int>();
  program.height = from["height"].cast<int>();
  program.width = from["width"].cast<int>();
  program.filters = from["filters"].cast<int>();
  program.head = static_cast<HeadKind>(from["head"].cast<int>());
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

// pxfast.engines.compiled's view of a chooser: a dictionary of plain values. lower, upper: the ranges, as the images lie
// in memory, which the result points to.
inline Chooser to_chooser(const py::dict& from, const uint8_t* lower, const uint8_t* upper) {
  return {lower,
          upper,
          from["samples"].cast<bool>(),
          from["keep_probability"].cast<float>(),
          from["seed"].cast<uint64_t>(),
          from["first"].cast<uint64_t>(),
          from["inverse_temperature"].cast<float>()};
}

}  // namespace pxfast
