// A server of HTTP/1.1 over TLS by OpenSSL (Tomcat's native library), or in plain text for "-" as
// certificate:
//
//     java -cp JARS TomcatServer.java DIRECTORY CERTIFICATE KEY
//
// Sends the number of bytes that a path like /bytes/100 ends with.

import javax.servlet.http.HttpServlet;
import javax.servlet.http.HttpServletRequest;
import javax.servlet.http.HttpServletResponse;
import java.io.IOException;
import org.apache.catalina.Context;
import org.apache.catalina.connector.Connector;
import org.apache.catalina.core.AprLifecycleListener;
import org.apache.catalina.startup.Tomcat;
import org.apache.tomcat.util.net.SSLHostConfig;
import org.apache.tomcat.util.net.SSLHostConfigCertificate;

public class TomcatServer {
    static class Bytes extends HttpServlet {
        @Override
        protected void doGet(HttpServletRequest request, HttpServletResponse response)
                throws IOException {
            String path = request.getRequestURI();
            byte[] body = new byte[Integer.parseInt(path.substring(path.lastIndexOf('/') + 1))];
            response.setContentLength(body.length);
            response.getOutputStream().write(body);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Tomcat tomcat = new Tomcat();
        tomcat.setBaseDir(arguments[0]);
        tomcat.getServer().addLifecycleListener(new AprLifecycleListener());
        Connector connector = new Connector("org.apache.coyote.http11.Http11NioProtocol");
        connector.setPort(0);
        if (!arguments[1].equals("-")) {
            connector.setSecure(true);
            connector.setScheme("https");
            connector.setProperty("SSLEnabled", "true");
            connector.setProperty(
                    "sslImplementationName",
                    "org.apache.tomcat.util.net.openssl.OpenSSLImplementation");
            SSLHostConfig host = new SSLHostConfig();
            SSLHostConfigCertificate certificate =
                    new SSLHostConfigCertificate(host, SSLHostConfigCertificate.Type.EC);
            certificate.setCertificateFile(arguments[1]);
            certificate.setCertificateKeyFile(arguments[2]);
            host.addCertificate(certificate);
            connector.addSslHostConfig(host);
        }
        tomcat.setConnector(connector);
        Context context = tomcat.addContext("", arguments[0]);
        Tomcat.addServlet(context, "bytes", new Bytes());
        context.addServletMappingDecoded("/*", "bytes");
        tomcat.start();
        System.out.println("{\"port\": " + connector.getLocalPort() + "}");
        System.out.flush();
        tomcat.getServer().await();
    }
}
