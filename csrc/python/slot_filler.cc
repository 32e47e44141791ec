// fastckpt._core.SlotFiller: threads that fill slots while Python sees to the full ones.
//
// The object owns the threads and holds the buffers they write their results to.

#include "slot_filler.h"

#include <vector>

#include "../core/slot_filler.h"
#include "parity_tally.h"
#include "thread_object.h"

namespace fastckpt {
namespace python {

namespace {

// The members in this order: the threads end before what they work on goes.
struct Filling {
  Buffer extents;
  Buffer ends;
  Buffer leaves;
  Buffer crcs;
  Buffer sources;
  Buffer hashed;
  TallyInUse tally;
  TransferRequest request;
  SlotFiller* filler = nullptr;
  OwnedThreads threads;

  ~Filling() { delete filler; }

  void Close() {
    threads.Close([this] {
      if (filler != nullptr) filler->Close();
    });
  }
};

bool Start(Filling* filling, PyObject* arguments, PyObject* keywords) {
  static const char* names[] = {"source_fd", "extents", "ends", "leaves", "crcs", "slots",
                                "threads", "source_direct_fd", "sink_fd", "sink_direct_fd",
                                "sources", "hashed", "padded", "tally", nullptr};
  PyObject* extents = nullptr;
  PyObject* ends = nullptr;
  PyObject* leaves = nullptr;
  PyObject* crcs = nullptr;
  PyObject* sources = Py_None;
  PyObject* hashed = Py_None;
  PyObject* tally = Py_None;
  Py_ssize_t slots = 0;  // required, as is `threads`: 0 is refused below
  long threads = 0;
  TransferRequest& request = filling->request;
  request.sink_fd = TransferRequest::kMemory;
  int padded = 0;
  if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "iOOOO|$nliiiOOpO", const_cast<char**>(names),
                                   &request.source_fd, &extents, &ends, &leaves, &crcs, &slots,
                                   &threads, &request.source_direct_fd, &request.sink_fd,
                                   &request.sink_direct_fd, &sources, &hashed, &padded,
                                   &tally) ||
      !CheckThreads(threads))
    return false;
  request.padded = padded != 0;
  if (!filling->tally.Get(tally)) return false;
  request.tally = filling->tally.get();
  if (!GetExtents(extents, &filling->extents, &request) ||
      !GetResults(leaves, crcs, &filling->leaves, &filling->crcs, &request) ||
      !filling->ends.GetArray(ends, PyBUF_SIMPLE, sizeof(uint64_t), "ends") ||
      !filling->ends.IsAligned(alignof(uint64_t), "ends"))
    return false;
  Turns turns;
  turns.ends = reinterpret_cast<const uint64_t*>(filling->ends.data());
  turns.count = filling->ends.size() / sizeof(uint64_t);
  turns.slots = slots > 0 ? static_cast<size_t>(slots) : 0;
  if (sources != Py_None) {
    if (!filling->sources.GetArray(sources, PyBUF_SIMPLE, 2 * sizeof(int32_t), "sources") ||
        !filling->sources.IsAligned(alignof(int32_t), "sources"))
      return false;
    turns.sources = reinterpret_cast<const int32_t*>(filling->sources.data());
    if (filling->sources.size() / (2 * sizeof(int32_t)) != turns.count) {
      PyErr_SetString(PyExc_ValueError, "sources: not one for each turn");
      return false;
    }
  }
  if (hashed != Py_None) {
    if (!filling->hashed.GetArray(hashed, PyBUF_SIMPLE, 1, "hashed")) return false;
    turns.hashed = filling->hashed.data();
    if (filling->hashed.size() != turns.count) {
      PyErr_SetString(PyExc_ValueError, "hashed: not one for each turn");
      return false;
    }
  }
  const Status status = SlotFiller::Check(request, turns);
  if (status.ok()) {
    filling->filler = new SlotFiller(request, turns);
    filling->threads.Start(filling->filler, threads);
  }
  if (!status.ok()) Raise(status);
  return status.ok();
}

PyObject* RaiseClosed() {
  PyErr_SetString(PyExc_ValueError, "the filler is closed");
  return nullptr;
}

PyObject* Wait(PyObject* self, PyObject* arguments) {
  Filling* const filling = StateOf<Filling>(self);
  PyObject* number = nullptr;
  PyObject* progress = Py_None;
  if (!PyArg_ParseTuple(arguments, "O|O", &number, &progress)) return nullptr;
  const size_t turn = PyLong_AsSize_t(number);
  if (PyErr_Occurred() != nullptr) return nullptr;
  for (bool full = false; !full;) {
    if (filling->threads.closed()) return RaiseClosed();
    {
      WithoutGil without_gil;
      if (!filling->threads.has_threads()) filling->filler->WorkOn(turn);
      full = filling->filler->WaitFor(turn, kPollInterval);
    }
    if (PyErr_CheckSignals() != 0 || !ReportProgress(progress, filling->filler->Moved())) return nullptr;
  }
  if (filling->threads.closed()) return RaiseClosed();
  std::vector<ReadFault> faults;
  const Status status = filling->filler->Take(turn, &faults);
  return status.ok() ? FaultList(faults) : Raise(status);
}

PyObject* Release(PyObject* self, PyObject*) {
  Filling* const filling = StateOf<Filling>(self);
  if (filling->threads.closed()) return RaiseClosed();
  if (!filling->filler->Release()) {
    PyErr_SetString(PyExc_ValueError, "no full slot to release");
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"wait", Wait, METH_VARARGS,
     PyDoc_STR("wait(turn, progress=None, /)\n--\n\nWait until a turn is full; what could not be read.")},
    {"release", Release, METH_NOARGS,
     PyDoc_STR("release()\n--\n\nLet the slot of the oldest turn be filled again.")},
    {"close", CloseThreadObject<Filling>, METH_NOARGS, PyDoc_STR("close()\n--\n\nStop and join all threads.")},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(NewThreadObject<Filling>)},
    {Py_tp_dealloc, reinterpret_cast<void*>(FreeThreadObject<Filling>)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>(
                    "SlotFiller(source_fd, extents, ends, leaves, crcs, *, slots, threads, "
                    "source_direct_fd=-1, sink_fd=-1, sink_direct_fd=-1, sources=None, "
                    "hashed=None, padded=False, tally=None)\n--\n\n"
                    "Fills slots, or a file, turn after turn on its threads.")},
    {0, nullptr}};

PyType_Spec spec = {"fastckpt._core.SlotFiller", sizeof(ThreadObject<Filling>), 0, Py_TPFLAGS_DEFAULT,
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
