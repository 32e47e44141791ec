// fastckpt._core.parity_tally, tally_add and tally_finish.

#include "parity_tally.h"

#include <new>

#include "../core/bytes.h"
#include "../core/constants.h"

namespace fastckpt {
namespace python {

namespace {

constexpr char kName[] = "fastckpt.ParityTally";

// What a capsule holds. The members in this order: the buffers outlive what writes to them.
struct Tallying {
  Buffer parity;
  Buffer leaves;
  ParityTally* tally = nullptr;

  ~Tallying() { delete tally; }
};

void Free(PyObject* capsule) {
  delete static_cast<Tallying*>(PyCapsule_GetPointer(capsule, kName));
}

// Null with a Python exception set.
ParityTally* TallyOf(PyObject* capsule) {
  auto* const tallying = static_cast<Tallying*>(PyCapsule_GetPointer(capsule, kName));
  return tallying != nullptr ? tallying->tally : nullptr;
}

bool Start(PyObject* arguments, Tallying* tallying) {
  PyObject* parity = nullptr;
  PyObject* leaves = nullptr;
  unsigned long long size = 0, groups = 0;
  long rows = 0;
  if (!PyArg_ParseTuple(arguments, "KKlOO", &size, &groups, &rows, &parity, &leaves)) return false;
  ParityTally::Plan plan;
  plan.size = size;
  plan.groups = groups;
  plan.rows = static_cast<size_t>(rows);
  const Status status = ParityTally::Check(plan);
  if (!status.ok()) return Raise(status) != nullptr;
  if (!tallying->parity.GetArray(parity, PyBUF_WRITABLE, kLeafSize, "parity") ||
      !tallying->leaves.GetArray(leaves, PyBUF_WRITABLE, sizeof(uint64_t), "leaves") ||
      !tallying->leaves.IsAligned(alignof(uint64_t), "leaves"))
    return false;
  if (tallying->parity.size() / kLeafSize != plan.rows * groups ||
      tallying->leaves.size() / sizeof(uint64_t) != LeafCount(size)) {
    PyErr_SetString(PyExc_ValueError, "parity, leaves: not those of a file of this size");
    return false;
  }
  plan.parity = tallying->parity.data();
  plan.leaves = reinterpret_cast<uint64_t*>(tallying->leaves.data());
  const WithoutGil without_gil;  // Large memory is touched for the first time.
  tallying->tally = new ParityTally(plan);
  return true;
}

PyObject* New(PyObject*, PyObject* arguments) {
  Tallying* tallying = nullptr;
  bool started = false;
  try {
    tallying = new Tallying;
    started = Start(arguments, tallying);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  PyObject* const capsule = started ? PyCapsule_New(tallying, kName, Free) : nullptr;
  if (capsule == nullptr) delete tallying;
  return capsule;
}

PyObject* Add(PyObject*, PyObject* arguments) {
  PyObject* capsule = nullptr;
  PyObject* object = nullptr;
  unsigned long long offset = 0;
  if (!PyArg_ParseTuple(arguments, "OOK", &capsule, &object, &offset)) return nullptr;
  ParityTally* const tally = TallyOf(capsule);
  Buffer data;
  if (tally == nullptr || !data.Get(object, PyBUF_SIMPLE)) return nullptr;
  Status status;
  {
    const WithoutGil without_gil;
    status = tally->Add(data.data(), data.size(), offset);
  }
  if (!status.ok()) return Raise(status);
  Py_RETURN_NONE;
}

PyObject* Finish(PyObject*, PyObject* capsule) {
  ParityTally* const tally = TallyOf(capsule);
  if (tally == nullptr) return nullptr;
  {
    const WithoutGil without_gil;
    tally->Finish();
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"parity_tally", New, METH_VARARGS,
     PyDoc_STR("parity_tally(size, groups, rows, parity, leaves, /)\n--\n\n"
               "Begins to sum up the parity of a file that is going to be written.")},
    {"tally_add", Add, METH_VARARGS,
     PyDoc_STR("tally_add(tally, data, offset, /)\n--\n\nAdds bytes that are written there.")},
    {"tally_finish", Finish, METH_O,
     PyDoc_STR("tally_finish(tally, /)\n--\n\nAll is added: what was not is zero.")},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool TallyInUse::Get(PyObject* object) {
  if (object == Py_None) return true;
  tally_ = TallyOf(object);
  if (tally_ == nullptr) return false;
  Py_INCREF(object);
  object_ = object;
  return true;
}

bool AddParityTally(PyObject* module) { return PyModule_AddFunctions(module, methods) == 0; }

}  // namespace python
}  // namespace fastckpt
