// The type fastckpt._core.SlotFiller.

#ifndef FASTCKPT_PYTHON_SLOT_FILLER_H_
#define FASTCKPT_PYTHON_SLOT_FILLER_H_

#include "common.h"

namespace fastckpt {
namespace python {

// False with a Python exception set.
bool AddSlotFiller(PyObject* module);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_SLOT_FILLER_H_
