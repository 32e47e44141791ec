// fastckpt._core.SlotFiller: threads that fill slots while Python sees to the full ones.
//
// The object owns the threads and holds the buffers they write their results to. It can be closed
// from any thread and more than once; what it points at is freed with the object, when no call can
// be in it any more.

#include "slot_filler.h"

#include <unistd.h>

#include <atomic>
#include <new>
#include <vector>

#include "../core/slot_filler.h"
#include "../core/workers.h"

namespace fastckpt {
namespace python {

namespace {

// The members in this order: the threads end before what they work on goes.
struct Filling {
  Buffer extents;
  Buffer ends;
  Buffer leaves;
  Buffer crcs;
  TransferRequest request;
  SlotFiller* filler = nullptr;
  Workers workers;
  bool has_threads = false;
  std::atomic<bool> closed{false};
  const pid_t owner = getpid();

  ~Filling() { delete filler; }

  // In a process that was forked from the owner there are no threads to wait for.
  bool IsOwner() const { return getpid() == owner; }

  void Close() {
    if (closed.exchange(true) || filler == nullptr || !IsOwner()) return;
    WithoutGil without_gil;
    filler->Close();
    workers.Join();
  }
};

struct SlotFillerObject {
  PyObject_HEAD
  Filling* filling;
};

Filling* FillingOf(PyObject* self) { return reinterpret_cast<SlotFillerObject*>(self)->filling; }

bool Start(Filling* filling, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"source_fd", "extents", "ends",    "leaves",           "crcs",
                                "slots",     "threads", "source_direct_fd", nullptr};
  PyObject* extents = nullptr;
  PyObject* ends = nullptr;
  PyObject* leaves = nullptr;
  PyObject* crcs = nullptr;
  Py_ssize_t slots = 0;  // required, as is `threads`: 0 is refused below
  long threads = 0;
  TransferRequest& request = filling->request;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iOOOO|$nli", const_cast<char**>(names),
                                   &request.source_fd, &extents, &ends, &leaves, &crcs, &slots,
                                   &threads, &request.source_direct_fd) ||
      !CheckThreads(threads))
    return false;
  request.sink_fd = TransferRequest::kMemory;
  if (!GetExtents(extents, &filling->extents, &request) ||
      !GetResults(leaves, crcs, &filling->leaves, &filling->crcs, &request) ||
      !filling->ends.GetArray(ends, PyBUF_SIMPLE, sizeof(uint64_t), "ends") ||
      !filling->ends.IsAligned(alignof(uint64_t), "ends"))
    return false;
  const uint64_t* const turn_ends = reinterpret_cast<const uint64_t*>(filling->ends.data());
  const size_t turns = filling->ends.size() / sizeof(uint64_t);
  uint64_t total = 0;
  Status status = request.Check(&total);
  if (status.ok()) {
    const size_t count = slots > 0 ? static_cast<size_t>(slots) : 0;
    status = SlotFiller::Check(request, turn_ends, turns, count);
    if (status.ok()) {
      filling->filler = new SlotFiller(request, turn_ends, turns, count);
      // Where no thread can be had, the turns are filled by whoever waits for them.
      filling->has_threads =
          filling->workers.Start(filling->filler, static_cast<int>(threads)).ok();
    }
  }
  if (!status.ok()) Raise(status);
  return status.ok();
}

PyObject* New(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* const self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  bool started = false;
  try {
    reinterpret_cast<SlotFillerObject*>(self)->filling = new Filling;
    started = Start(FillingOf(self), arguments, keywords);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  if (started) return self;
  Py_DECREF(self);
  return nullptr;
}

void Dealloc(PyObject* self) {
  Filling* const filling = FillingOf(self);
  if (filling != nullptr) {
    filling->Close();
    // Destroying threads that another process runs would end this one: they are left alone.
    if (filling->IsOwner()) delete filling;
  }
  PyTypeObject* const type = Py_TYPE(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

PyObject* RaiseClosed() {
  PyErr_SetString(PyExc_ValueError, "the filler is closed");
  return nullptr;
}

PyObject* Wait(PyObject* self, PyObject* number) {
  Filling* const filling = FillingOf(self);
  const size_t turn = PyLong_AsSize_t(number);
  if (PyErr_Occurred() != nullptr) return nullptr;
  for (bool full = false; !full;) {
    if (filling->closed) return RaiseClosed();
    {
      WithoutGil without_gil;
      if (!filling->has_threads) filling->filler->WorkOn(turn);
      full = filling->filler->WaitFor(turn, kPollInterval);
    }
    if (PyErr_CheckSignals() != 0) return nullptr;
  }
  if (filling->closed) return RaiseClosed();
  std::vector<ReadFault> faults;
  const Status status = filling->filler->Take(turn, &faults);
  return status.ok() ? FaultList(faults) : Raise(status);
}

PyObject* Release(PyObject* self, PyObject*) {
  Filling* const filling = FillingOf(self);
  if (filling->closed) return RaiseClosed();
  if (!filling->filler->Release()) {
    PyErr_SetString(PyExc_ValueError, "no full slot to release");
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyObject* Close(PyObject* self, PyObject*) {
  FillingOf(self)->Close();
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"wait", Wait, METH_O,
     PyDoc_STR("wait(turn, /)\n--\n\nWait until a turn is full; what could not be read.")},
    {"release", Release, METH_NOARGS,
     PyDoc_STR("release()\n--\n\nLet the slot of the oldest turn be filled again.")},
    {"close", Close, METH_NOARGS, PyDoc_STR("close()\n--\n\nStop and join all threads.")},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(New)},
    {Py_tp_dealloc, reinterpret_cast<void*>(Dealloc)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>(
                    "SlotFiller(source_fd, extents, ends, leaves, crcs, *, slots, threads, "
                    "source_direct_fd=-1)\n--\n\nFills slots turn after turn on its threads.")},
    {0, nullptr}};

PyType_Spec spec = {"fastckpt._core.SlotFiller", sizeof(SlotFillerObject), 0, Py_TPFLAGS_DEFAULT,
                    slots};

}  // namespace

bool AddSlotFiller(PyObject* module) {
  PyObject* const type = PyType_FromModuleAndSpec(module, &spec, nullptr);
  const bool added = type != nullptr && PyModule_AddObjectRef(module, "SlotFiller", type) == 0;
  Py_XDECREF(type);
  return added;
}

}  // namespace python
}  // namespace fastckpt
