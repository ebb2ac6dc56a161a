// Which sources the module was built from. Python compares them with those of a checkout.
#pragma once

namespace pxfast {

// What pxfast/base/sources.py makes of csrc/. A file of its own, so that no other is compiled anew for it.
const char* sources();

}  // namespace pxfast
