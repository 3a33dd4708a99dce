// Package upstream holds Legion's DaemonSet controller to the behaviour that
// upstream's tests state, on upstream's kube-apiserver and scheduler.
package upstream
