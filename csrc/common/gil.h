// Work without the GIL, and the interpreter's end meanwhile: a daemon thread may be at work then.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <stdexcept>
#include <thread>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

namespace pxfast {

namespace py = pybind11;

// Whether the interpreter is ending: it ends a thread that asks for the GIL then, or never lets it go on.
inline bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// Lets others have the GIL for its lifetime. Where the interpreter has ended meanwhile, the thread stays here until the
// process ends: there is nothing to return to, and being unwound would destroy Python's objects without the GIL.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    if (interpreter_ends()) stay();
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (const abi::__forced_unwind&) {  // it has ended since the question
      stay();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  [[noreturn]] static void stay() {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }

  PyThreadState* state_;
};

// What a decode that works without the GIL does from time to time: it hears Ctrl-C, and tells `report` of the images
// that are done.
inline void look_up(const py::object& report, int64_t done) {
  if (interpreter_ends()) throw std::runtime_error("the interpreter is ending");
  py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  if (!report.is_none()) report(done);
}

}  // namespace pxfast
