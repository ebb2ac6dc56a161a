// Decodes a batch with the CPU engine, without Python: for machines that an emulator stands for. stdin: what
// tests/support/cpu_driver.py writes; stdout: the decoded images; stderr: the instruction sets that are usable.
#include <cstdio>
#include <exception>

#include "cpu/engine.h"
#include "program_stream.h"

namespace {

void run() {
  const pxfast::ProgramSpec spec = read_program();
  const std::vector<char> isa = read_values<char>((size_t)read_int());
  const bool bf16 = read_int() != 0;
  const int threads = (int)read_int();
  const auto order = static_cast<pxfast::Order>(read_int());
  const ChooserAndImages given(spec);
  std::vector<uint8_t> output(given.input.size());
  const pxfast::Engine engine(spec, std::string(isa.begin(), isa.end()), bf16);
  engine.decode(given.input.data(), output.data(), given.images, given.chooser, threads, order, [](int64_t) {});
  for (const std::string& name : pxfast::usable_isas()) std::fprintf(stderr, "%s ", name.c_str());
  std::fwrite(output.data(), 1, output.size(), stdout);
}

}  // namespace

int main() {
  try {
    run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
