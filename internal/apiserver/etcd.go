package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	etcdclient "go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// longestSocket is what fits in a unix socket's address (unix(7)), less room
// for etcd's own suffixes.
const longestSocket = 100

// ownEtcd is an etcd inside this process.
type ownEtcd struct {
	endpoint string
	// client calls it without a socket between.
	client *etcdclient.Client
	room   *room
	stop   func()
}

// StoreFile is the file that the etcd inside the server of dir maps.
func StoreFile(dir string) string {
	return filepath.Join(etcdDir(dir), "data", "member", "snap", "db")
}

func etcdDir(dir string) string { return filepath.Join(dir, "server", "etcd") }

// startEtcd runs an etcd inside this process that keeps its data in dir and
// listens on a unix socket only this user can open. told hears of it when its
// disk is full, and when it is so no more.
func startEtcd(ctx context.Context, dir string, told func(error)) (*ownEtcd, error) {
	fail := func(err error) (*ownEtcd, error) {
		return nil, fmt.Errorf("cannot start the store in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	socket, cleanUp, err := socketPath(dir)
	if err != nil {
		return fail(err)
	}
	config := embed.NewConfig()
	config.Dir = filepath.Join(dir, "data")
	level, err := quietLog(config)
	if err != nil {
		return fail(err)
	}
	config.ListenClientUrls = []url.URL{{Scheme: "unix", Path: socket}}
	config.AdvertiseClientUrls = config.ListenClientUrls
	// One member: nothing listens for peers.
	config.ListenPeerUrls = nil
	config.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:2380"}}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	// The API server asks for compaction every five minutes; the space is
	// given back at start.
	config.BootstrapDefragThresholdMegabytes = 64
	room := &room{dir: config.Dir, told: told}
	if info, err := os.Stat(filepath.Join(config.Dir, "member", "snap", "db")); err == nil && room.free(uint64(info.Size())+least) != nil {
		config.BootstrapDefragThresholdMegabytes = 0 // it takes a copy
	}
	config.GRPCAdditionalServerOptions = []grpc.ServerOption{grpc.ChainUnaryInterceptor(room.guard)}
	config.QuotaBackendBytes = 8 << 30
	// One member: nobody has to catch up, so few entries are held in memory.
	config.SnapshotCount = 5000
	config.SnapshotCatchUpEntries = 100
	server, err := embed.StartEtcd(config)
	if err != nil {
		cleanUp()
		return fail(err)
	}
	client := &etcdclient.Client{Client: v3client.New(server.Server)}
	client.KV = guardedKV{client.KV, room}
	client.Kubernetes = client
	keeping, keep := context.WithCancel(context.Background())
	var kept sync.WaitGroup
	stop := func() {
		keep()
		kept.Wait()
		_ = client.Close()
		// A store that is being closed complains about its closed listeners.
		level.SetLevel(zap.FatalLevel)
		server.Close()
		cleanUp()
	}
	select {
	case <-server.Server.ReadyNotify():
		room.set(room.make())
		kept.Go(func() { room.keep(keeping) })
		return &ownEtcd{"unix://" + socket, client, room, stop}, nil
	case err = <-server.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(time.Minute):
		err = errors.New("not ready within a minute (is the disk very slow?)")
	}
	stop()
	return fail(err)
}

// quietLog lets etcd say only what is wrong.
func quietLog(config *embed.Config) (zap.AtomicLevel, error) {
	settings := zap.NewProductionConfig()
	settings.Level = zap.NewAtomicLevelAt(zap.ErrorLevel)
	settings.Encoding = "console"
	settings.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	settings.DisableStacktrace = true
	logger, err := settings.Build()
	if err != nil {
		return settings.Level, err
	}
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger.Named("etcd"))
	return settings.Level, nil
}

// socketPath is a socket in dir or, where that path is too long for a socket,
// in a private temporary directory.
func socketPath(dir string) (string, func(), error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, "etcd.sock")
	if len(path) <= longestSocket {
		// What a crash has left.
		_ = os.Remove(path)
		return path, func() { _ = os.Remove(path) }, nil
	}
	temp, err := os.MkdirTemp("", "legion-etcd-")
	if err != nil {
		return "", nil, err
	}
	return filepath.Join(temp, "etcd.sock"), func() { _ = os.RemoveAll(temp) }, nil
}
