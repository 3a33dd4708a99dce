// Package faults holds the controller of DaemonSets to its promises while all
// around it fails: the API server restarts, refuses, answers late or not at
// all, watches end and skip, the controller itself dies between any two
// writes, two of them run at a time, the Lease is lost, nodes come and go,
// clocks step. Its tests run the real controller with the real client library on a model of the API server, in
// virtual time. LEGION_FAULTS_SEEDS says how many seeds each test tries,
// LEGION_FAULTS_SEED which one alone.
package faults
