"""grpcio: a pool of 16 threads serves, and all share one channel to the back."""

import concurrent.futures
import sys
import threading
import time

import grpc

PORT, BACK_PORT = map(int, sys.argv[1:])
back = grpc.insecure_channel(f"127.0.0.1:{BACK_PORT}")


class Forward(grpc.GenericRpcHandler):
    def service(self, details):
        ask = back.unary_unary(details.method)
        return grpc.unary_unary_rpc_method_handler(lambda request, _: ask(request))


def background():
    number = 0
    while True:
        back.unary_unary(f"/fidelity/background/{number}")(b"?")
        number += 1
        time.sleep(0.05)


server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
server.add_generic_rpc_handlers([Forward()])
server.add_insecure_port(f"127.0.0.1:{PORT}")
server.start()
threading.Thread(target=background, daemon=True).start()
server.wait_for_termination()
