package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
)

// serve answers on an address: HTTP, and gRPC's health service, whose wire
// format is a frame of a protocol buffer over HTTP/2. What the paths do:
//
//	/exists/PATH   is as PATH exists or not
//	/make/PATH     makes PATH
//	/said/WORD     prints that it was asked, with the header X-Said
//	else           200
func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	go func() {
		fmt.Println("serve:", (&http.Server{Handler: http.HandlerFunc(answer), Protocols: protocols}).Serve(l))
		os.Exit(1)
	}()
	return nil
}

// checked says that the first gRPC check was told of.
var checked atomic.Bool

func answer(w http.ResponseWriter, r *http.Request) {
	if path, ok := strings.CutPrefix(r.URL.Path, "/exists"); ok {
		if _, err := os.Stat(path); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
		return
	}
	if path, ok := strings.CutPrefix(r.URL.Path, "/make"); ok {
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	if strings.HasPrefix(r.URL.Path, "/said/") {
		fmt.Println("asked", r.Method, r.URL.Path, r.Host, r.Header.Get("X-Said"))
	}
	if r.URL.Path == "/grpc.health.v1.Health/Check" {
		check(w, r)
	}
}

// check answers that a service is healthy, but for one called "ill".
func check(w http.ResponseWriter, r *http.Request) {
	frame, _ := io.ReadAll(io.LimitReader(r.Body, 4096))
	name := ""
	if len(frame) > 7 { // five bytes of the frame, the field's tag and length
		name = string(frame[7:])
	}
	if checked.CompareAndSwap(false, true) {
		fmt.Printf("checked %q\n", name)
	}
	status := byte(1) // SERVING
	if name == "ill" {
		status = 2
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	body := []byte{0x08, status} // the field status
	head := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))
	_, _ = w.Write(append(head, body...))
	w.Header().Set("Grpc-Status", "0")
}
