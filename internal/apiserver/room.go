package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// An etcd whose disk is full ends the process at its next write, and again at
// each start. So the store has its room before it needs it, and what would be
// written without is refused.
const (
	// segment is how large a file of etcd's log is; one is in use and one made
	// ready by etcd, which ends where it cannot make the one after.
	segment = 16 << 20
	// ahead is how much more than it has the database has room for. It grows by
	// 16 MiB at a time (go.etcd.io/bbolt, DefaultAllocSize).
	ahead = 32 << 20
	// least must be free besides, for what is small: a snapshot is a few KiB.
	// Once that was not so, it must be twice as much.
	least = 4 << 20
	// roomEvery is how often room is made ahead. What is written meanwhile must
	// fit into it.
	roomEvery = 250 * time.Millisecond
	// plenty is so much that nobody asks for it before each write: who takes it
	// all within roomEvery leaves the store what was made ahead.
	plenty = 1 << 30
)

func init() { wal.SegmentSizeBytes = segment }

// room is what the store may still write.
type room struct {
	// dir is etcd's own.
	dir string
	// told is called when room is there no more, and with nil when it is there
	// again.
	told func(why error)

	mu  sync.Mutex
	why error
	// refused is when something was refused last, in nanoseconds since 1970.
	refused atomic.Int64
	// full: why is set.
	full atomic.Bool
	// ample: plenty was free when room was made last.
	ample atomic.Bool
}

// keep makes room ahead until ctx ends.
func (r *room) keep(ctx context.Context) {
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		r.set(r.make())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (r *room) set(why error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed := (why == nil) != (r.why == nil)
	r.why = why
	r.full.Store(why != nil)
	if changed && r.told != nil {
		r.told(why)
	}
}

// make has the file system give the store its room.
func (r *room) make() error {
	r.ample.Store(false)
	member := filepath.Join(r.dir, "member")
	db := filepath.Join(member, "snap", "db")
	info, err := os.Stat(db)
	if err != nil {
		return err
	}
	err = reserve(db, info.Size()+ahead, unix.FALLOC_FL_KEEP_SIZE)
	for _, spare := range []string{"0.tmp", "1.tmp"} {
		if err == nil {
			err = reserve(filepath.Join(member, "wal", spare), segment, 0)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot make room for what is to come: %w", err)
	}
	r.ample.Store(r.free(plenty) == nil)
	if r.full.Load() {
		return r.free(2 * least)
	}
	return r.free(least)
}

// reserve has blocks for the first size bytes of a file. What is in the file
// stays as it is.
func reserve(path string, size int64, mode uint32) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	for {
		err = unix.Fallocate(int(file.Fd()), mode, 0, size)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), err == nil:
			return nil // a file system that cannot has what is free, and no more
		default:
			return &os.PathError{Op: "fallocate", Path: path, Err: err}
		}
	}
}

// free returns an error if the disk has less than this.
func (r *room) free(least uint64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(r.dir, &disk); err != nil {
		return &os.PathError{Op: "statfs", Path: r.dir, Err: err}
	}
	blocks := disk.Bavail
	if os.Geteuid() == 0 {
		blocks = disk.Bfree
	}
	if free := blocks * uint64(disk.Bsize); free < least {
		return fmt.Errorf("%s has %d KiB left on its disk, and needs %d", r.dir, free>>10, least>>10)
	}
	return nil
}

// check returns an error if nothing may be written now.
func (r *room) check() error {
	if !r.full.Load() {
		if r.ample.Load() {
			return nil
		}
		why := r.free(least)
		if why == nil {
			return nil
		}
		r.set(why)
	}
	r.refused.Store(time.Now().UnixNano())
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why == nil {
		return nil
	}
	return noRoom(r.why)
}

// lastRefused is when something was refused last.
func (r *room) lastRefused() time.Time { return time.Unix(0, r.refused.Load()) }

// reasonNoRoom is the reason of what is refused.
const reasonNoRoom metav1.StatusReason = "InsufficientStorage"

func noRoom(why error) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage, Reason: reasonNoRoom,
		Message: "the server's disk is full, and nothing is written until there is room: " + why.Error(),
	}}
}

// guardedKV refuses to write where there is no room.
type guardedKV struct {
	clientv3.KV
	room *room
}

func (kv guardedKV) Put(ctx context.Context, key, value string, options ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if err := kv.room.check(); err != nil {
		return nil, err
	}
	return kv.KV.Put(ctx, key, value, options...)
}

func (kv guardedKV) Delete(ctx context.Context, key string, options ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	if err := kv.room.check(); err != nil {
		return nil, err
	}
	return kv.KV.Delete(ctx, key, options...)
}

func (kv guardedKV) Txn(ctx context.Context) clientv3.Txn {
	return guardedTxn{kv.KV.Txn(ctx), kv.room}
}

// guardedTxn is a transaction that writes.
type guardedTxn struct {
	clientv3.Txn
	room *room
}

func (t guardedTxn) If(cs ...clientv3.Cmp) clientv3.Txn { return guardedTxn{t.Txn.If(cs...), t.room} }

func (t guardedTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	return guardedTxn{t.Txn.Then(ops...), t.room}
}

func (t guardedTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	return guardedTxn{t.Txn.Else(ops...), t.room}
}

func (t guardedTxn) Commit() (*clientv3.TxnResponse, error) {
	if err := t.room.check(); err != nil {
		return nil, err
	}
	return t.Txn.Commit()
}

// guard refuses the same to who comes by the socket: upstream's storage of events.
func (r *room) guard(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	switch request.(type) {
	case *pb.PutRequest, *pb.DeleteRangeRequest, *pb.TxnRequest, *pb.LeaseGrantRequest, *pb.CompactionRequest:
		if r.check() != nil {
			return nil, rpctypes.ErrGRPCNoSpace
		}
	}
	return handle(ctx, request)
}
